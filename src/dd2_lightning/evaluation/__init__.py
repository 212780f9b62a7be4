"""How good a one-step generator is: metrics, contenders, the table, the pictures."""
