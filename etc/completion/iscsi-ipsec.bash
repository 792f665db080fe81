# bash completion of iscsi-ipsec(1); written by packaging/completion, so change it there

_iscsi_ipsec_offer()
{
    local kind=$1 etc=$2 run=$3 words=
    case $kind in
        files) _filedir ;;
        dirs) _filedir -d ;;
        flags) words='VALID IKE_IPSEC_ENABLED MAIN_MODE_ENABLED AGGRESSIVE_MODE_ENABLED PFS_ENABLED TRANSPORT_MODE_PREFERRED TUNNEL_MODE_PREFERRED' ;;
        types) words='ID_IPV4_ADDR ID_FQDN ID_USER_FQDN ID_IPV6_ADDR' ;;
        portals)
            words=$(grep -o '"portal": *"[^"]*"' "$run/status.json" 2>/dev/null | sed 's/.*"\([^"]*\)"$/\1/' | sort -u)
            ;;
        names)
            words=$(printf '%s\n' "$etc"/psk.d/*.toml "$run"/psk.d/*.toml | sed -n 's|.*/\([^/*]*\)\.toml$|\1|p' | sort -u)
            ;;
        ids)
            words=$(sed -n 's/^ *id *= *"\([^"]*\)".*/\1/p' "$etc"/psk.d/*.toml "$run"/psk.d/*.toml 2>/dev/null | sort -u)
            ;;
        *) words=$kind ;;
    esac
    COMPREPLY+=($(compgen -W "$words" -- "$cur"))
}

_iscsi_ipsec()
{
    local cur prev words cword split
    _init_completion -s -n : || return

    local verb='' action='' last='' etc=/etc/iscsi-ipsec run=/run/iscsi-ipsec i
    for ((i = 1; i < cword; i++)); do
        case ${words[i]} in
            --config-dir) etc=${words[++i]} ;;
            --config-dir=*) etc=${words[i]#*=} ;;
            --runtime-dir) run=${words[++i]} ;;
            --runtime-dir=*) run=${words[i]#*=} ;;
            --default-bitmap | --description | --encoding | --flags | --format | --id | --id-type | --keep-previous | --key-file | --local | --name | --nodes-dir | --portal | --state-dir | --sysfs-dir | --timeout | --vendor-dir | --vici-socket | --with)
                last=${words[i]}
                ((i++))
                ;;
            -*) last=${words[i]} ;;
            *)
                if [[ ! $verb ]]; then
                    verb=${words[i]}
                elif [[ ! $action ]]; then
                    action=${words[i]}
                fi
                ;;
        esac
    done

    local options='' free=''
    case $prev in
        --config-dir | --nodes-dir | --runtime-dir | --state-dir | --sysfs-dir | --vendor-dir) free=dirs ;;
        --key-file | --vici-socket) free=files ;;
        --flags) free=flags ;;
        --format) free='iscsicli isns json powershell reg' ;;
        --name) free=names ;;
        --portal) free=portals ;;
        --id-type) free=types ;;
        --default-bitmap | --description | --encoding | --id | --keep-previous | --local | --timeout | --with) return ;;
    esac
    if [[ ! $free ]]; then
        $split && return
        case "$verb $action" in
            " ")
                options='--version --config-dir --runtime-dir --vendor-dir --state-dir --vici-socket --sysfs-dir --nodes-dir'
                free='status verify explain check plan wait release open-all flags psk group-psk tunnel-address clear-cache import'
                ;;
            "status "*)
                options='-w --wide --json --watch'
                free=''
                ;;
            "verify "*)
                options='--json'
                free=''
                ;;
            "explain "*)
                options='--json'
                free='portals'
                ;;
            "check "*)
                options='--json'
                free='files'
                ;;
            "plan "*)
                options='--with --json'
                free=''
                ;;
            "wait "*)
                options='--timeout --json'
                free='portals'
                ;;
            "release "*)
                options='-y --yes -n --dry-run'
                free='portals'
                ;;
            "open-all "*)
                options='-y --yes -n --dry-run'
                free=''
                ;;
            "flags "*)
                options='--json'
                free='flags'
                ;;
            "psk ")
                options=''
                free='set get list undo remove'
                ;;
            "psk set")
                options='--id-type --name --id --flags --portal --description --runtime --keep-previous --revoke --encrypt --no-encrypt -y --yes -n --dry-run --wait --timeout --stdin --key-file --generate'
                free='names'
                ;;
            "psk get")
                options='--id-type --json'
                free='ids'
                ;;
            "psk list")
                options='--json'
                free=''
                ;;
            "psk undo")
                options='-y --yes -n --dry-run --wait --timeout'
                free=''
                ;;
            "psk remove")
                options='--id-type --name -y --yes -n --dry-run --revoke --wait --timeout --runtime'
                free='ids'
                ;;
            "group-psk ")
                options=''
                free='set remove'
                ;;
            "group-psk set")
                options='--flags --portal --description --runtime --keep-previous --revoke --encrypt --no-encrypt -y --yes -n --dry-run --wait --timeout --stdin --key-file --generate --name'
                free=''
                ;;
            "group-psk remove")
                options='-y --yes -n --dry-run --revoke --wait --timeout --runtime --name'
                free=''
                ;;
            "tunnel-address ")
                options=''
                free='set remove'
                ;;
            "tunnel-address set")
                options='--local -n --dry-run --runtime'
                free='portals'
                ;;
            "tunnel-address remove")
                options='-n --dry-run --runtime'
                free='portals'
                ;;
            "clear-cache "*)
                options='--timeout'
                free=''
                ;;
            "import "*)
                options='--format --default-bitmap --hex-keys --group-key-nul --encoding --id --apply -y --yes -n --dry-run --force --json'
                free='files'
                ;;
        esac
        if [[ $cur == -* ]]; then
            COMPREPLY=($(compgen -W "$options -h --help" -- "$cur"))
            return
        fi
        [[ $last == --flags ]] && free=flags
    fi
    if [[ $free ]]; then
        _iscsi_ipsec_offer "$free" "$etc" "$run"
        __ltrim_colon_completions "$cur"
    fi
}
complete -F _iscsi_ipsec iscsi-ipsec
