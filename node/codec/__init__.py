"""An image to a payload and back."""
