"""The built-in methods, one `.gro` file each, as package data."""
