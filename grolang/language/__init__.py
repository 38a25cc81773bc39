"""Text to checked IR. Nothing in this room imports torch."""
