package discovery

import (
	"fmt"

	"github.com/firsttoken/firsttoken/scoring"
)

// roles are what endpoints[].role may say.
var roles = map[string]scoring.Role{
	"": scoring.RoleBoth, "both": scoring.RoleBoth, "prefill": scoring.RolePrefill, "decode": scoring.RoleDecode,
}

// RoleOf is what the engine of a valid entry does of a request.
func (e Entry) RoleOf() scoring.Role { return roles[e.Role] }

func (e Entry) validateRole(path string) []error {
	if _, ok := roles[e.Role]; ok {
		return nil
	}
	return []error{fmt.Errorf("%s.role: %q is unknown; write both, prefill or decode", path, e.Role)}
}
