"""a local page that compares two models or engines on one typed query"""
