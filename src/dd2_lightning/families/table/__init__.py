"""The table teacher: a joint distribution written out in full, the oracle of the tests."""
