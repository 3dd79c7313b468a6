"""The one exception of this example that a user can cause."""


class UserError(Exception):
    """Something the user gave cannot be used; the message says what and why, and is all that is printed."""
