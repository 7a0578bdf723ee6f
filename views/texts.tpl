<%
# Replace me: every text of the pages, (English, Russian). Any LANG but ru is shown in English.
# A page reads them with  env = include('texts.tpl')  →  env['t'], env['says']

texts = {
    "app": ("Provider FastSms", "Provider FastSms"),
    "install": ("Connect your SMS operator", "Подключение SMS-оператора"),
    "index": ("SMS operator settings", "Настройки SMS-оператора"),
    "save": ("Save", "Сохранить"),
    "demo": ("Demo: messages are accepted, but nothing is really sent.",
             "Демо-режим: сообщения принимаются, но на самом деле ничего не отправляется."),
    "noscript": ("This page needs JavaScript.", "Для этой страницы нужен JavaScript."),
    "missing": ("The application is not set up yet. Set these environment variables to the values "
                "from its card in Bitrix24 and restart it:",
                "Приложение ещё не настроено. Задайте эти переменные окружения (значения — "
                "в карточке приложения в Битрикс24) и перезапустите его:"),

    # The state, on the settings page
    "state": ("What is saved now", "Что сохранено"),
    "no key": ("not saved yet", "ещё не сохранён"),
    "address": ("Address for Bitrix24", "Адрес для Битрикс24"),
    "no address": ("not registered yet: press Save", "ещё не зарегистрирован: нажмите «Сохранить»"),
    "moved": ("The application's address is {present}, but Bitrix24 sends messages to {saved}. "
              "If the application has moved, press Save.",
              "Адрес приложения — {present}, но Битрикс24 отправляет сообщения на {saved}. "
              "Если приложение переехало, нажмите «Сохранить»."),
    "repaired": ("Bitrix24 now sends messages to this address.",
                 "Теперь Битрикс24 отправляет сообщения на этот адрес."),
    "waiting": ("Messages waiting", "Сообщений в очереди"),
    "last pass": ("Last pass", "Последний проход"),
    "next pass": ("The next pass will show what became of it.",
                  "Что изменилось, покажет следующий проход."),
    "no pass": ("none yet", "ещё не было"),
    "sent": ("sent", "отправлено"),
    "delivered": ("delivered", "доставлено"),
    "undelivered": ("undelivered", "не доставлено"),
    "failed": ("failed", "с ошибкой"),

    # What went wrong in the last pass: "operator" or "portal", then what it said
    "operator": ("The operator does not accept messages at the moment.",
                 "Оператор сейчас не принимает сообщения."),
    "operator key": ("The operator no longer accepts the key: enter a new one and press Save.",
                     "Оператор больше не принимает ключ: введите новый и нажмите «Сохранить»."),
    "operator money": ("There is no money in the operator's account. Messages wait for it.",
                       "На счёте у оператора нет денег. Сообщения ждут пополнения."),
    "operator limit": ("The operator's daily limit is used up. Messages wait.",
                       "Дневной лимит у оператора исчерпан. Сообщения ждут."),
    "operator down": ("The operator did not answer. The next passes try again.",
                      "Оператор не отвечал. Следующие проходы попробуют снова."),
    "operator busy": ("The operator asks to slow down. Messages wait a little.",
                      "Оператор просит не спешить. Сообщения немного подождут."),
    "operator in doubt": ("The operator broke off without an answer; it may have a message twice.",
                          "Оператор оборвал связь без ответа; сообщение могло уйти дважды."),
    "portal": ("Bitrix24 could not be told about the statuses. The next passes try again.",
               "Не удалось сообщить статусы в Битрикс24. Следующие проходы попробуют снова."),
    "portal invalid_client": (
        "Bitrix24 does not accept the application's client id and secret: check "
        "C_REST_CLIENT_SECRET and restart.",
        "Битрикс24 не принимает client_id и секрет приложения: проверьте "
        "C_REST_CLIENT_SECRET и перезапустите приложение."),
    "press Save": ("Bitrix24 no longer accepts the saved authorization: press Save.",
                   "Битрикс24 больше не принимает сохранённую авторизацию: нажмите «Сохранить»."),

    # Opened outside Bitrix24
    "outside": ("Open this application in Bitrix24", "Откройте это приложение в Битрикс24"),
    "how": ("This page works only inside Bitrix24. Log in to your Bitrix24 and choose the "
            "application's own item in the menu, or find it in Applications (Market) among "
            "the installed ones.",
            "Эта страница работает только внутри Битрикс24. Войдите в свой Битрикс24 и выберите "
            "в меню пункт с названием приложения или найдите его в разделе «Приложения» "
            "(«Маркет») среди установленных."),
}

# What the script says by itself, or about an error code. OTHER: any code that is not here.
sayings = {
    "saving": ("Checking the key and registering the provider in Bitrix24…",
               "Проверяем ключ и регистрируем провайдер в Битрикс24…"),
    "busy": ("Saving…", "Сохраняем…"),
    "saved": ("Saved. The provider is registered in Bitrix24.",
              "Сохранено. Провайдер зарегистрирован в Битрикс24."),
    "outside": ("Bitrix24 does not answer. Open this page inside Bitrix24, by the application's "
                "item in the menu or in Applications (Market); if it is open there, reload it.",
                "Битрикс24 не отвечает. Откройте эту страницу внутри Битрикс24: пункт приложения в "
                "меню или раздел «Приложения» («Маркет»); если она открыта там, обновите её."),
    "OPERATOR_KEY": ("The operator does not accept what was entered.",
                     "Оператор не принимает введённые данные."),
    "OPERATOR_DOWN": ("The operator could not check what was entered. Try again later.",
                      "Оператор не смог проверить введённые данные. Попробуйте позже."),
    "NOT_ADMIN": ("Only an administrator of Bitrix24 may see and change these settings.",
                  "Видеть и менять эти настройки может только администратор Битрикс24."),
    "OTHER_PORTAL": ("The application is installed on another Bitrix24. To move it, delete the "
                     "file settings.json in its data folder.",
                     "Приложение установлено на другом Битрикс24. Чтобы перенести его, удалите "
                     "файл settings.json в папке с его данными."),
    "WRONG_TOKEN": ("Bitrix24 does not confirm that this page belongs to the application. Reload "
                    "the page; check the client id of the application.",
                    "Битрикс24 не подтверждает, что эта страница принадлежит приложению. Обновите "
                    "страницу; проверьте client_id приложения."),
    "OAUTH_SERVER": ("The authorization server of Bitrix24 did not answer. Try again later.",
                     "Сервер авторизации Битрикс24 не ответил. Попробуйте позже."),
    "PORTAL": ("Bitrix24 did not answer the application. Try again later.",
               "Битрикс24 не ответил приложению. Попробуйте позже."),
    "WRONG_HOST": ("The application's own address is not usable: set PUBLIC_URL to an address with "
                   "https:// and restart.",
                   "Собственный адрес приложения не годится: задайте в PUBLIC_URL адрес с https:// "
                   "и перезапустите приложение."),
    "NO_CLIENT_ID": ("The application is not set up yet: its client id and secret are missing.",
                     "Приложение ещё не настроено: не заданы его client_id и секрет."),
    "NO_ANSWER": ("The application did not answer. Check the connection and try again.",
                  "Приложение не ответило. Проверьте соединение и попробуйте снова."),
    "ACCESS_DENIED": ("Bitrix24 refuses the application access: REST needs a Marketplace subscription "
                      "or its trial, and registering a provider an administrator.",
                      "Битрикс24 отказывает приложению в доступе: для REST нужна подписка на "
                      "Маркетплейс или её пробный период, для регистрации — администратор."),
    "insufficient_scope": ("The application lacks the right “messageservice”: add it in the "
                           "application's card and reinstall.",
                           "Приложению не хватает права messageservice: добавьте его в карточке "
                           "приложения и переустановите."),
    "ERROR_WRONG_HANDLER_URL": ("Bitrix24 does not accept the application's address: it must be "
                                "public. See PUBLIC_URL.",
                                "Битрикс24 не принимает адрес приложения: он должен быть "
                                "доступен из интернета. См. PUBLIC_URL."),
    "OTHER": ("It did not work. Try again.", "Не получилось. Попробуйте снова."),
}

t = {name: both[bool(ru)] for name, both in texts.items()}
says = {name: both[bool(ru)] for name, both in sayings.items()}
%>
