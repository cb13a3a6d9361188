"""The workshop: takes jobs from the queue and has the domain carry them out. No business rule, no SQL."""
