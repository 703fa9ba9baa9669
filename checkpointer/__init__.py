"""One async LangGraph checkpoint saver for every SQL database."""
