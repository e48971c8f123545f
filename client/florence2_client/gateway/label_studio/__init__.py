"""An ML backend for Label Studio: predictions for its projects, and answers while its users draw.

`read_config` (config) reads a project's configuration, `plan` (plan) says what to ask the model for it, `regions`
turns answers into results, `ProjectFiles` (files) reads Label Studio's images. `label` (job) does this for a task, and
`routes` for a request.
"""
