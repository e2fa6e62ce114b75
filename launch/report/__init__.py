"""A run as one page that people look at, from its files alone."""
