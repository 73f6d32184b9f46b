"""An HTTP server in OpenAI's form over the scheduler of one or several models.

`app.create_app` makes the application. A request passes `gate` (keys, sizes, times), is read by a
strict model of `requests`, becomes sequences at a `desk`, and its pieces become an answer in a
module of `routes`.
"""
