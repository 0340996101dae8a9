"""How alike two images are, tile by tile inside the breast, and whether that is good enough."""
