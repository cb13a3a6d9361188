"""The node agent: ``cistern node``, one per host that uses volumes.

`agent`      carries out the jobs that attach and detach volumes
`keeper`     looks at the volumes of the node again and again: grows, reports, trims, lets go of what was taken away
`freezing`   freezes file systems when workers ask for it
`main`       the process
`host`       what the agent does to its host
"""
