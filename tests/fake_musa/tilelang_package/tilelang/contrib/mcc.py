"""Where the fork calls mcc; by this file it is known."""
