"""The performance suite: what a user would pick instead, side by side with this package (`make bench`)."""
