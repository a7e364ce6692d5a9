package lmcache_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// endpoint makes one of "name ip:port [instance=ID] [worker=PORT]".
func endpoint(id int, text string) scoring.Endpoint {
	words := strings.Fields(text)
	e := scoring.Endpoint{ID: scoring.EndpointID(id), Name: words[0], Address: words[1], Ready: true}
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "instance":
			e.Cache.Instance = value
		case "worker":
			fmt.Sscan(value, &e.Cache.WorkerPort)
		}
	}
	return e
}

// instance makes one of "id rank0-ip port seq [rank1-ip port seq ...]".
func instance(text string) lmcache.Instance {
	words := strings.Fields(text)
	in := lmcache.Instance{ID: words[0]}
	for rest := words[1:]; len(rest) >= 3; rest = rest[3:] {
		w := lmcache.WorkerAddress{Worker: len(in.Workers), IP: rest[0]}
		fmt.Sscan(rest[1], &w.Port)
		fmt.Sscan(rest[2], &w.RegisteredSeq)
		in.Workers = append(in.Workers, w)
	}
	return in
}

func TestMapInstances(t *testing.T) {
	for _, test := range []struct {
		name                 string
		endpoints, instances []string
		want                 string
	}{
		{"nothing", nil, nil, ""},
		{
			"named by the operator, wherever it registers from",
			[]string{"a 10.0.0.1:8000 instance=x", "b 10.0.0.2:8000 instance=y"},
			[]string{"x 127.0.0.1 9000 1", "y 127.0.0.1 9001 2"},
			"a=x b=y",
		},
		{
			"named but not there yet: it may report all the same",
			[]string{"a 10.0.0.1:8000 instance=x"},
			nil,
			"a=x",
		},
		{
			"worker port with the registered ip",
			[]string{"a 10.0.0.1:8000 worker=9000", "b 10.0.0.1:8001 worker=9001"},
			[]string{"x 10.0.0.1 9001 1", "y 10.0.0.1 9000 2"},
			"a=y b=x",
		},
		{
			"the registered port is never the engine's",
			[]string{"a 10.0.0.1:8000", "b 10.0.0.1:8001"},
			[]string{"x 10.0.0.1 8000 1", "y 10.0.0.1 8001 2"},
			"!a: 2 endpoints !b: 2 endpoints !x: 2 endpoints !y: 2 endpoints",
		},
		{
			"a worker port that nobody registered is not guessed around",
			[]string{"a 10.0.0.1:8000 worker=9000"},
			[]string{"x 10.0.0.1 9001 1"},
			"!a: no LMCache worker !x: the endpoint with its ip",
		},
		{
			"two endpoints cannot have one worker",
			[]string{"a 10.0.0.1:8000 worker=9000", "b 10.0.0.1:8001 worker=9000"},
			[]string{"x 10.0.0.1 9000 1"},
			`!a: endpoints ["a" "b"] have !b: endpoints ["a" "b"] have !x: 2 endpoints`,
		},
		{
			"the ip that one endpoint and one instance have",
			[]string{"a 10.0.0.1:8000", "b 10.0.0.2:8000", "c [fd00::1]:8000"},
			[]string{"x 10.0.0.2 9000 1", "y ::ffff:10.0.0.1 0 2", "z fd00::1 9000 3"},
			"a=y b=x c=z",
		},
		{
			"two instances at the ip",
			[]string{"a 10.0.0.1:8000"},
			[]string{"x 10.0.0.1 9000 1", "y 10.0.0.1 9001 2"},
			`!a: LMCache instances ["x" "y"] !x: the endpoint with its ip !y: the endpoint with its ip`,
		},
		{
			"ports that say 0 are not an address that can be taken over",
			[]string{"a 10.0.0.1:8000"},
			[]string{"x 10.0.0.1 0 1", "y 10.0.0.1 0 2"},
			`!a: LMCache instances ["x" "y"] !x: the endpoint with its ip !y: the endpoint with its ip`,
		},
		{
			"a newer id at the same address replaces the older",
			[]string{"a 10.0.0.1:8000", "b 10.0.0.2:8000 worker=9000", "c 10.0.0.3:8000 instance=old3"},
			[]string{
				"new 10.0.0.1 9000 5", "old 10.0.0.1 9000 4", "old2 10.0.0.2 9000 6", "new2 10.0.0.2 9000 7",
				"old3 10.0.0.3 9000 8", "new3 10.0.0.3 9000 9",
			},
			"a=new b=new2 !c: its LMCache instance old3 was replaced by new3 !old: replaced by new !old2: replaced by new2 !old3: replaced by new3 !new3: the endpoint with its ip",
		},
		{
			"an instance over two nodes belongs where its endpoint is",
			[]string{"a 10.0.0.1:8000"},
			[]string{"x 10.0.0.1 9000 1 10.0.0.2 9001 2"},
			"a=x",
		},
		{
			"replaced at one address, gone at all",
			[]string{"a 10.0.0.1:8000 worker=9001"},
			[]string{"x 10.0.0.1 9000 1 10.0.0.1 9001 2", "y 10.0.0.1 9000 3"},
			"!a: no LMCache worker has registered as 10.0.0.1:9001 !x: replaced by y !y: the endpoint with its ip",
		},
		{
			"what is named for one endpoint is nobody else's",
			[]string{"a 10.0.0.1:8000 instance=x", "b 10.0.0.2:8000"},
			[]string{"x 10.0.0.2 9000 1"},
			"a=x !b: the LMCache instance at its ip, x, is named",
		},
		{
			"no address, no ip",
			[]string{"a 10.0.0.1:8000", "b somewhere"},
			[]string{"x nowhere 9000 1", "y"},
			"!a: no LMCache instance has registered !b: no LMCache instance has registered !x: it registered from \"nowhere\", which is no ip !y: it reports, but never",
		},
		{
			"nobody there",
			[]string{"a 10.0.0.1:8000"},
			[]string{"x 10.9.9.9 9000 1"},
			"!a: no LMCache instance has registered from its ip 10.0.0.1 !x: no endpoint has its ip [10.9.9.9]",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var endpoints []scoring.Endpoint
			var instances []lmcache.Instance
			for i, text := range test.endpoints {
				endpoints = append(endpoints, endpoint(i+1, text))
			}
			for _, text := range test.instances {
				instances = append(instances, instance(text))
			}
			m := lmcache.MapInstances(endpoints, instances)
			var got []string
			for _, e := range endpoints {
				if id, ok := m.Instances[e.ID]; ok {
					got = append(got, e.Name+"="+id)
				}
			}
			// Of each reason as much as is wanted.
			rest := strings.Split(test.want, "!")
			for i, u := range m.Unmapped {
				text := u.Endpoint + u.Instance + ": " + u.Reason
				if i+1 < len(rest) {
					if want := strings.TrimSpace(rest[i+1]); strings.HasPrefix(text, want) {
						text = want
					}
				}
				got = append(got, "!"+text)
			}
			if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
