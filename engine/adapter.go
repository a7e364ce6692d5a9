package engine

// Adapter is a LoRA adapter that is served under a name of its own, as with
// vLLM's --lora-modules.
type Adapter struct {
	Name, Path string
}

// adapter is one that is loaded.
type adapter struct {
	Adapter
	id int // from 1 on
}

func loadAdapters(list []Adapter) map[string]*adapter {
	loaded := make(map[string]*adapter, len(list))
	for i, a := range list {
		loaded[a.Name] = &adapter{a, i + 1}
	}
	return loaded
}
