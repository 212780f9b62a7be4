"""Teachers, students and the families they come in."""
