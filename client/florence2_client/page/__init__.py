"""The web page of `florence2 ui`, made with Gradio, which no other part of the client imports.

`requests` sends the page's requests, `cards` shows the answers, `layout` holds the form, `serving` serves the page.
"""
