"""The study of scale: which method leaves less error in one step, by number of tokens, codes and nats."""
