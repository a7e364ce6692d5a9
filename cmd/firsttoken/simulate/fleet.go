package simulate

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/replay"
)

// fleetForm is what --endpoints looks like.
const fleetForm = "COUNT[xPROFILE][@SPEED][/KV_TOKENS][,…], as in 8, in 4,4@0.4/160k and in 4xh100-8b-cpu,2x3090-7b"

// maxEndpoints is far above what a pool of one model has, and keeps a typing
// error from taking all memory.
const maxEndpoints = 4096

// fleet makes the endpoints of --endpoints. profile is that of groups that name
// none; sizes changes each profile before the group's own speed and size. Where
// there are several groups, each is a kind of its own.
func fleet(text string, profile simulator.Profile, sizes func(simulator.Profile) simulator.Profile) ([]replay.Endpoint, error) {
	var all []replay.Endpoint
	groups := strings.Split(text, ",")
	for _, group := range groups {
		count, e, err := endpointGroup(group, profile, sizes)
		if err != nil {
			return nil, fmt.Errorf("endpoints %q: %w; write %s", text, err, fleetForm)
		}
		if len(groups) > 1 {
			e.Kind = strings.TrimLeft(group, "0123456789")
			if e.Kind == "" || e.Kind[0] != 'x' {
				e.Kind = "x" + profile.Name + e.Kind
			}
			e.Kind = e.Kind[1:]
		}
		if len(all)+count > maxEndpoints {
			return nil, fmt.Errorf("endpoints %q: are more than %d", text, maxEndpoints)
		}
		for range count {
			all = append(all, e)
		}
	}
	return all, nil
}

func endpointGroup(text string, profile simulator.Profile, sizes func(simulator.Profile) simulator.Profile) (count int, e replay.Endpoint, err error) {
	rest, kv, sized := strings.Cut(text, "/")
	rest, speedText, sped := strings.Cut(rest, "@")
	countText, name, named := strings.Cut(rest, "x")
	if count, err = strconv.Atoi(countText); err != nil || count < 1 {
		return 0, e, fmt.Errorf("%q is no number of engines", countText)
	}
	if named {
		if profile, err = simulator.ProfileByName(name); err != nil {
			return 0, e, err
		}
	}
	profile = sizes(profile)
	if sped {
		speed, err := strconv.ParseFloat(speedText, 64)
		if err != nil || !(speed >= 1e-3 && speed <= 1e3) {
			return 0, e, fmt.Errorf("%q is no speed between 0.001 and 1000", speedText)
		}
		profile = profile.AtSpeed(speed)
	}
	if sized {
		if profile.KVTokens, err = parseTokens(kv); err != nil {
			return 0, e, err
		}
		if profile.KVTokens == 0 {
			return 0, e, errors.New("no KV tokens, no engine")
		}
	}
	return count, replay.Endpoint{Profile: profile}, nil
}

// failures reads --fail: which endpoint is gone, from when to when.
func failures(texts []string) ([]replay.Failure, error) {
	var all []replay.Failure
	for _, text := range texts {
		parts := strings.Split(text, ",")
		if len(parts) != 3 {
			return nil, fmt.Errorf("--fail %q: write the endpoint's number from 0 on, and from when to when: 2,600,900", text)
		}
		endpoint, err := strconv.Atoi(parts[0])
		if err != nil {
			return nil, fmt.Errorf("--fail %q: %q is no endpoint's number; the first is 0", text, parts[0])
		}
		f := replay.Failure{Endpoint: endpoint}
		if f.From, err = parseSeconds(parts[1]); err != nil {
			return nil, fmt.Errorf("--fail %q: %w", text, err)
		}
		if f.To, err = parseSeconds(parts[2]); err != nil {
			return nil, fmt.Errorf("--fail %q: %w", text, err)
		}
		all = append(all, f)
	}
	return all, nil
}
