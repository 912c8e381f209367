"""From a strategy as it is written (a name, YAML, keywords) to one that is checked, resolved and scheduled."""
