"""The web page of `florence2 ui`, made with Gradio, which nothing else of the client imports.

`asking` puts the page's questions to a server, `region` is the picture that a box is drawn on, `layout` the page.
"""
