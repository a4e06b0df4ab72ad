"""The meter: attaches the counting hooks, drains them without loss, and makes rows of what they counted."""
