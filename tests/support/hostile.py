"""Texts that would do harm in a page, if they were more than text."""

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>',
    "]]>&lt;&amp;&#0;\u2028\u2029",
    "\u202egnp.exe\x00\x1b[31m\ud800",
    "{{constructor.constructor('alert(1)')()}}",
]
