"""Power."""

def cases(request):
    return []
