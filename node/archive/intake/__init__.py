"""What happens to an image when it arrives."""
