"""The history of volumes: their sizes and used bytes, one sample for each hour in which they have changed.

Workers take the samples independently of jobs, so that no operation waits for them. Any number of workers may take them
at once. The sample of the current hour is replaced until the hour is over.
"""
