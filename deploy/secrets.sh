#!/bin/sh
# Make the secrets that docker-compose.yml mounts, each in a file of its own, in the folder given
# (deploy/secrets by default). What is there already stays as it is.
#
# The folder is closed to others. The files in it are readable to all, because the containers, to
# which each is mounted by itself, read them as another user.
set -eu
folder=${1:-$(dirname "$0")/secrets}

keep() { # the file's name; its content on standard input
    if [ ! -e "$folder/$1" ]; then
        cat > "$folder/$1.part"
        chmod 444 "$folder/$1.part"
        mv "$folder/$1.part" "$folder/$1"
    fi
}

random() { # so many random bytes, in hexadecimal
    head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'
}

fernet() { # a key for encryption
    head -c 32 /dev/urandom | base64 | tr -- '+/' '-_'
}

umask 077
mkdir -p "$folder"
chmod 700 "$folder"
random 24 | keep eigenpress_database_password
fernet | keep eigenpress_credentials_key
fernet | keep eigenpress_encryption_key
random 10 | keep eigenpress_s3_access_key_id
random 24 | keep eigenpress_s3_secret_access_key
random 32 | keep ray_auth_token
random 24 | keep eigenpress_metrics_token
random 24 | keep grafana_admin_password
printf 'ep_%s' "$(random 32)" | keep eigenpress_admin_key
keep s3_identities <<EOF
{"identities": [{"name": "eigenpress", "actions": ["Admin", "Read", "Write", "List"],
  "credentials": [{"accessKey": "$(cat "$folder/eigenpress_s3_access_key_id")",
                   "secretKey": "$(cat "$folder/eigenpress_s3_secret_access_key")"}]}]}
EOF
