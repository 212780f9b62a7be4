"""How long a teacher, a generator and the updates of the stages take on this machine."""
