"""
Settings of the shop. What the library needs stands first; the rest is any small project.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# The library ---------------------------------------------------------------------------

INSTALLED_APPS = [
    "orders",
    "rest_framework",
    "rest_framework.authtoken",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "dotmac_tasks_django",
]

MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    # Behind authentication and CSRF checks, if a project has them: a retry that is no
    # longer allowed in must not get the stored answer either. REST framework checks inside
    # its views, where `@idempotent` on the method takes care of the same.
    "dotmac_tasks_django.middleware.BackgroundOperationsMiddleware",
]

DOTMAC_TASKS: dict[str, Any] = {
    "STORAGE": os.environ.get("REDIS_URL") or "memory://",
    "EXEMPT_PATHS": ["/health/"],
    # Short, so that in the demo the orders of a killed worker go on after three seconds.
    # The default of 30 suits a real shop: a healthy worker renews its lease anyway.
    "LEASE": 3,
    # The most that one call to a storage may take that does not answer. What happens then
    # is said where it matters, on each view: `@idempotent(on_storage_error=...)`.
    "STORAGE_TIMEOUT": 1,
}

# The shop ------------------------------------------------------------------------------

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("SHOP_DATA", BASE_DIR))
GATEWAY_URL = os.environ.get("SHOP_GATEWAY", "http://127.0.0.1:8001")

# A public JSON API on loopback without sessions: there is nothing that this key protects.
SECRET_KEY = "only-for-the-example"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DEBUG = False
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
USE_TZ = True
TIME_ZONE = "UTC"
# Partners have tokens; nobody logs in with a browser, so there are no sessions and no pages.
REST_FRAMEWORK = {"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]}
STORAGES = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        # A run that begins again replaces the file of the one before instead of adding one.
        "OPTIONS": {"location": DATA_DIR / "photos", "allow_overwrite": True},
    },
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA_DIR / "shop.sqlite3",
        "CONN_MAX_AGE": 60,
        # Several processes write to this file. IMMEDIATE takes the write lock when a
        # transaction begins, so that it waits there instead of failing halfway.
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}

# `demo.py --unprotected` shows the same shop without the library.
if os.environ.get("SHOP_UNPROTECTED"):
    INSTALLED_APPS.remove("dotmac_tasks_django")
    MIDDLEWARE.pop()
    ROOT_URLCONF = "shop.urls_unprotected"
