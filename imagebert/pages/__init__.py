"""Pages that are one file and load nothing from elsewhere: the look that all share, and plots as inline SVG."""
