// Clients that know nothing of credentials but what their SDK finds, for `cargo xtask clients`.
//
//	clients NAME COUNT    for each line of its input, each client signs one request
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	aws1 "github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	sts1 "github.com/aws/aws-sdk-go/service/sts"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// A client: how it forgets its credentials, though nothing else, and how it signs a request.
type client struct {
	forget func()
	sign   func() error
}

func main() {
	makers := map[string]func() (client, error){"go-v1": v1, "go-v2": v2, "minio-go": minioGo}
	count, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	clients := make([]client, count)
	for i := range clients {
		if clients[i], err = makers[os.Args[1]](); err != nil {
			panic(err)
		}
	}
	lines := bufio.NewScanner(os.Stdin)
	for turn := 0; lines.Scan(); turn++ {
		errs := make([]error, count)
		var all sync.WaitGroup
		for i, one := range clients {
			all.Go(func() {
				if turn > 0 {
					one.forget()
				}
				errs[i] = one.sign()
			})
		}
		all.Wait()
		good, first := 0, ""
		for _, err := range errs {
			if err == nil {
				good++
			} else if first == "" {
				first = strings.Join(strings.Fields(err.Error()), " ")
			}
		}
		fmt.Println("done", good, first)
	}
}

func v1() (client, error) {
	config := aws1.NewConfig().WithEndpoint(os.Getenv("KIAM_STS_URL"))
	session, err := session.NewSession(config)
	if err != nil {
		return client{}, err
	}
	service := sts1.New(session)
	sign := func() error {
		_, err := service.GetCallerIdentity(&sts1.GetCallerIdentityInput{})
		return err
	}
	return client{service.Config.Credentials.Expire, sign}, nil
}

func v2() (client, error) {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return client{}, err
	}
	service := sts.NewFromConfig(cfg, func(options *sts.Options) {
		options.BaseEndpoint = aws.String(os.Getenv("KIAM_STS_URL"))
	})
	sign := func() error {
		_, err := service.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		return err
	}
	return client{cfg.Credentials.(*aws.CredentialsCache).Invalidate, sign}, nil
}

func minioGo() (client, error) {
	keys := credentials.NewIAM("")
	host := strings.TrimPrefix(os.Getenv("KIAM_S3_URL"), "http://")
	service, err := minio.New(host, &minio.Options{Creds: keys, Region: "eu-west-1"})
	if err != nil {
		return client{}, err
	}
	sign := func() error {
		object, err := service.GetObject(context.Background(), "bucket", "object", minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		_, err = io.ReadAll(object)
		return err
	}
	return client{keys.Expire, sign}, nil
}
