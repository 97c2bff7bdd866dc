"""The page on which people state preferences: ``accord label``."""
