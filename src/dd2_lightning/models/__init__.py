"""Teachers, students and generators, whatever the family."""
