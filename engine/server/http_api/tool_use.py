"""How calls of tools in an answer are read, for models that can be offered tools."""

from tokenmux.core.errors import InvalidRequest
from tokenmux.models.text.tool_formats import TOOL_FORMATS, schemas_of
from tokenmux.server.front.generation import Ask, Chat
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.forced_calls import ForcedCall
from tokenmux.server.http_api.outputs import ToolUse


async def tool_use_of(
    front: FrontService, ask: Ask, forced: ForcedCall | None, *, several: bool
) -> ToolUse | None:
    """How calls in the answer are read; None if no tools are offered. With `several` there may be more than
    one.

    Raises InvalidRequest if the model's template knows no tools, or asks for calls in an unknown form, and
    NotFound, NotServable.
    """
    if not isinstance(ask.prompt, Chat) or not ask.prompt.tools:
        return None
    about = await front.about_model(ask.model)
    if not about.takes_tools:
        said = f"the chat template of {ask.model} knows no tools: leave tools out, or use another model"
        raise InvalidRequest(said, field="tools")
    form = about.tool_format if forced is None else forced.form
    if form is None:
        known = ", ".join(form.name for form in TOOL_FORMATS)
        raise InvalidRequest(
            f"calls of {ask.model} cannot be read: its chat template asks for none of the forms known here "
            f"({known}); force a call with tool_choice, use another model, or gRPC, which returns text",
            field="tools",
        )
    return ToolUse(form, schemas_of(ask.prompt.tools), several)
