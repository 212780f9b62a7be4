"""The comparison of samplers with their teacher: who is compared, what is measured, the report and its figures."""
