"""An ML backend for Label Studio: predictions for its projects, and assistance while its users draw.

`read_config` (config) reads a project's configuration, `plan` (plan) returns the requests that it needs, `regions`
turns answers into results, and `ProjectFiles` (files) reads Label Studio's images. `label` (job) does all this for one
task, and `routes` for a request of Label Studio.
"""
