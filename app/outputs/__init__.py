"""Where results go: files and pictures."""
