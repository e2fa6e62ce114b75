"""Every table of kinds, in one place: a new mixer, optimizer, source, backend or weight format is one line here."""
