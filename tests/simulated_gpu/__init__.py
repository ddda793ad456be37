"""A simulated GPU for the ranks of tests: `device.cpp` says what it is, and `ranks` makes ranks compute on it."""
