"""The pretend parties: a Bitrix24 portal, its OAuth server, SMS.ru; the app beside them.

They are written from the public documentation and know nothing of app.py's insides.
"""
from .bitrix24 import ADMINISTRATOR, EMPLOYEE, Portal
from .box import Box
from .browser import Browser, install
from .oauth import OAuth
from .smsru import GOOD_KEY, SmsRu
from .story import PHONE, TEXT, Story
from .wire import Party, Wire, until
from .world import ROOT, App, World, free_port

__all__ = ["ADMINISTRATOR", "EMPLOYEE", "GOOD_KEY", "PHONE", "ROOT", "TEXT", "App", "Box",
           "Browser", "OAuth", "Party", "Portal", "SmsRu", "Story", "Wire", "World", "free_port",
           "install", "until"]
