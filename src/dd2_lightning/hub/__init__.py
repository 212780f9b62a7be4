"""Published weights: cards that say what was published, strict readers, conversion into a teacher's directory."""
