"""Speed of the samplers, steps and updates against a reference algorithm, and how they scale."""
