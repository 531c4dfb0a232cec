"""
From an upload to a claim with its photo on the disk.
"""

from __future__ import annotations

from django.core.files.storage import default_storage
from django.http import HttpRequest, HttpResponse, JsonResponse

from orders.answers import refuse
from orders.models import Claim

MAX_PHOTO = 10 * 1024 * 1024


def answer_claim(request: HttpRequest, *, token: str) -> HttpResponse:
    """
    Keep the photo and write the claim, or find what was kept under this token.
    """
    number, photo = request.POST.get("number", ""), request.FILES.get("photo")
    if not 0 < len(number) <= 40 or not number.isprintable():
        return refuse(400, "'number' is a printable text of 1 to 40 characters.")
    if photo is None or photo.size > MAX_PHOTO:
        return refuse(400, "'photo' is a file of at most 10 MB.")
    # The file first, so that no claim names a file that is not there, and under a name that
    # only this claim has: a worker that dies here leaves a file that the next run replaces.
    name = default_storage.save(f"{token}.jpg", photo)
    claim, _ = Claim.objects.get_or_create(token=token, defaults={"number": number, "photo": name})
    return JsonResponse(
        {"id": claim.pk, "number": claim.number, "photo_bytes": photo.size}, status=201
    )
