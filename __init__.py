"""Marks the repository's folder as a package, so that editors follow relative imports from folder to folder.

The package `confide` itself is `src/confide`, whose links lead back here; nothing imports this file.
"""
