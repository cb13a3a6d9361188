"""Volumes: the storage that users read and write.

One operation at a time: a volume in a state that ends in -ing is held by the job in ``job_id``. The table of
`domain.operations` has the moves between the states; docs/concepts.md draws them.
"""
