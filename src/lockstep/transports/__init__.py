"""How bytes move between two ranks: one file a transport, whose class' keyword-only arguments are its options."""
