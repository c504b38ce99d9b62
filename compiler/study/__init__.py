"""`memoptc study`: one change at a time against the untouched model, measured side by side, with an evidence card."""
