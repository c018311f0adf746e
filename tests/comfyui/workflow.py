"""Workflows as ComfyUI's page saves them -> prompts as its server takes them."""

from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("MarkdownNote", "Note")
GRAPH_INPUT, GRAPH_OUTPUT = -10, -20
"""Numbers of the two ends of a subgraph."""


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """What the page sends for a workflow.

    Args:
        workflow: a file of `example_workflows`.
        object_info: answer of /object_info: the inputs of every node.
    """
    subgraphs = {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", [])}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = _Graph(workflow["nodes"], links, subgraphs, object_info)
    return graph.prompt()


class _Graph:
    """The nodes of a workflow, or of a subgraph inside of one.

    Args:
        nodes: as saved.
        links: number -> node and output that it comes from.
        subgraphs: all definitions.
        object_info: see `to_prompt`.
        prefix: of the nodes' ids.
        outer: for a subgraph, what comes into its inputs.
        outputs: for a subgraph, the node and output inside that each of its outputs shows.
    """

    def __init__(self, nodes, links, subgraphs, object_info, prefix="", outer=(), outputs=()):
        self.links, self.object_info, self.prefix = links, object_info, prefix
        self.outer, self.outputs = outer, outputs
        self.nodes = {node["id"]: node for node in nodes if node["type"] not in NOTES}
        self.inner: dict[int, _Graph] = {}
        for node in self.nodes.values():
            if node["type"] in subgraphs:
                self.inner[node["id"]] = self._open(node, subgraphs[node["type"]], subgraphs)

    def _open(self, node: dict, graph: dict, subgraphs: dict) -> "_Graph":
        links = {link["id"]: (link["origin_id"], link["origin_slot"]) for link in graph["links"]}
        outer = [self._source(given["link"]) for given in node["inputs"]]
        outputs = [links[one["linkIds"][0]] for one in graph["outputs"]]
        prefix = f"{self.prefix}{node['id']}:"
        return _Graph(graph["nodes"], links, subgraphs, self.object_info, prefix, outer, outputs)

    def _source(self, link: int | None) -> Any:
        """Where a link comes from, as prompts say it; None where nothing does."""
        if link is None:
            return None
        node, output = self.links[link]
        return self._output(node, output)

    def _output(self, node: int, output: int) -> Any:
        if node == GRAPH_INPUT:
            return self.outer[output]
        if node in self.inner:
            return self.inner[node]._output(*self.inner[node].outputs[output])
        return [f"{self.prefix}{node}", output]

    def prompt(self) -> dict[str, dict]:
        made = {}
        for number, node in self.nodes.items():
            if number in self.inner:
                made |= self.inner[number].prompt()
            else:
                inputs = self._widgets(node)
                for given in node.get("inputs", []):
                    source = self._source(given.get("link"))
                    if source is not None:
                        inputs[given["name"]] = source
                made[f"{self.prefix}{number}"] = {"class_type": node["type"], "inputs": inputs}
        return made

    def _widgets(self, node: dict) -> dict[str, Any]:
        """Widgets' values, which are saved by position; a seed is followed by what is done to it after a run."""
        values = list(node.get("widgets_values") or [])
        declared = self.object_info[node["type"]]["input"]
        inputs = {}
        for name, (kind, *facts) in [*declared.get("required", {}).items(), *declared.get("optional", {}).items()]:
            is_widget = isinstance(kind, list) or kind in WIDGET_TYPES
            if is_widget and values:
                inputs[name] = values.pop(0)
                if facts and facts[0].get("control_after_generate"):
                    values.pop(0)
        return inputs
